"""Other people's networks (arch=fno, unet, transolver), and trainings compared (bench.py peers)."""
from model import NETWORKS

from peers.networks import FourierOperator, Transolver, UNet

NETWORKS.update(fno=FourierOperator, unet=UNet, transolver=Transolver)
