"""Other people's networks (arch=fno, unet), and trainings compared (bench.py peers)."""
from model import NETWORKS

from peers.networks import FourierOperator, UNet

NETWORKS.update(fno=FourierOperator, unet=UNet)
