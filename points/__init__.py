"""Values at any points in (encoder='points'), and losses at some points of the grid (num_queries)."""
from losses import EXTENSIONS
from model import ENCODERS

from points.encoder import PointEncoder
from points.queries import at_query_points

ENCODERS['points'] = PointEncoder
EXTENSIONS.append(at_query_points)
