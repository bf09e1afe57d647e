"""
The model of several equations: a UPT for each, whose operators share their blocks.

A member has its own fixed transform, scale, symmetries, invariants and losses, as a model of one equation
has. Its own are also two linear maps (features of a token to the width of the blocks, and back), a learned
vector that stands for the equation and, where places differ, a position embedding. All blocks are shared, and
the condition is too: a parameter of the same name enters by the same weights in every equation.

    m = Universal(cfg)                   # m.members['burgers_cpu'] is a UPT
    m = model.load('out/universal', equation='burgers')              # the UPT of one equation
"""
from types import SimpleNamespace

import torch
import torch.nn as nn

from model import UPT, Conditioning, ModelConfig, RotaryPositions, Transformer
from runtime import extensions
from runtime.checkpoint import check_shapes, is_shared, tuples
from runtime.configurator import UserError


class PlanePositions(RotaryPositions):
    """Rotary positions of tokens in the plane, for domains of one and two axes: pairs of features belong to
    the first and the second axis in turn. In one dimension the second coordinate is 0, so its pairs are not
    rotated."""

    def __init__(self, centres, head_dim, periodic):
        if centres.shape[1] == 2:
            super().__init__(centres, head_dim, periodic)
            return
        if head_dim % 4:
            raise UserError(f'a head has {head_dim} features; positions in the plane need a multiple of 4')
        super().__init__(centres, head_dim // 2, periodic)
        self.half = head_dim // 2
        for name, still in (('cos', torch.ones), ('sin', torch.zeros)):
            table = getattr(self, name)                              # (S, head_dim / 2)
            both = torch.stack([table, still(table.shape)], -1)
            self.register_buffer(name, both.flatten(1), persistent=False)


class SharedTransformer(Transformer):
    """The pure transformer with positions in the plane, so that its blocks serve both dimensions."""

    def __init__(self, cfg):
        super().__init__(cfg)
        for block in self.levels[0]:
            attention = block.attention
            head_dim = attention.rotary.cos.shape[1]
            attention.rotary = PlanePositions(cfg.token_centres(cfg.token_grid), head_dim, cfg.periodic)


class NamedNumbers(nn.Module):
    """Time step, parameters and boundary by name -> (B, cond_dim). Each name has its weights, which members
    share; a parameter that an equation lacks adds nothing. The vector `equation` is the member's own."""

    def __init__(self, cfg):
        super().__init__()
        self.names = ('dt', *cfg.params)
        scale = len(self.names) ** -.5
        self.weights = nn.ParameterDict({name: scale * torch.randn(cfg.cond_dim) for name in self.names})
        self.boundary = nn.ParameterDict({cfg.boundary: torch.zeros(cfg.cond_dim)})
        self.equation = nn.Parameter(torch.zeros(cfg.cond_dim))

    def forward(self, x):
        """x (B, 1 + P): numbers of the names, in their order"""
        with torch.autocast(x.device.type, enabled=False):
            [boundary] = self.boundary.values()
            weights = torch.stack([self.weights[name] for name in self.names])
            return x.to(weights.dtype) @ weights + boundary + self.equation


class NamedConditioning(Conditioning):
    """Time step, parameters and boundary -> one vector (B, cond_dim), as NamedNumbers takes them."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.numbers = NamedNumbers(cfg)


class MixtureConfig(SimpleNamespace):
    """members: {name: the values of a ModelConfig}; steppers: those of all members."""

    @classmethod
    def of(cls, configs):
        """configs: {name: ModelConfig}"""
        return cls(members={name: vars(cfg) for name, cfg in configs.items()}, steppers=('operator',))

    @property
    def configs(self):
        """{name: ModelConfig}"""
        return {name: ModelConfig(**{key: tuples(value) for key, value in values.items()})
                for name, values in self.members.items()}

    def replace(self, **changes):
        return MixtureConfig(**{**vars(self), **changes})

    def model(self):
        return Universal(self)


class Universal(nn.Module):
    """The members of a mixture, UPTs by name. Their shared parameters are the same tensors."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.members = nn.ModuleDict({name: UPT(own) for name, own in cfg.configs.items()})
        shared = {}
        for member in self.members.values():
            for name, parameter in [*member.named_parameters()]:
                if is_shared(name):
                    path, _, leaf = name.rpartition('.')
                    member.get_submodule(path)._parameters[leaf] = shared.setdefault(name, parameter)

    def parts(self):
        """The modules that are compiled."""
        return [part for member in self.members.values() for part in member.parts()]

    def n_params(self):
        return sum(p.numel() for p in self.parameters())


def build(args, weights, path, new_steppers=()):
    """As model.build, of a mixture."""
    args = dict(args)
    args['members'] = {name: extensions.with_model_defaults(member, path)
                       for name, member in args['members'].items()}
    cfg = MixtureConfig(**args)
    with torch.device('meta'):
        expected = Universal(cfg).state_dict()
    check_shapes(path, weights, expected, new_steppers)
    model = Universal(cfg)
    model.load_state_dict(weights)
    return model
