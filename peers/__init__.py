"""Other people's networks (arch=fno, unet, transolver, pdet), and trainings compared (bench.py peers)."""
from model import NETWORKS

from peers.networks import FourierOperator, PDETransformer, Transolver, UNet

NETWORKS.update(fno=FourierOperator, unet=UNet, transolver=Transolver, pdet=PDETransformer)
