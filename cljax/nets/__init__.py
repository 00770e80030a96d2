"""Networks behind one signature; a net is a function from the number of outputs to a Model."""

from cljax.nets import transfer
from cljax.nets.cnn import cnn
from cljax.nets.convnet import convnet
from cljax.nets.dense import mlp
from cljax.nets.equinox import from_equinox, to_equinox
from cljax.nets.haiku import from_haiku
from cljax.nets.linen import from_linen
from cljax.nets.masked import masked
from cljax.nets.nnx import from_nnx, to_nnx
from cljax.nets.resnet import resnet8, resnet14, resnet18, resnet18_third, resnet32

NETS = {
    "mlp": mlp,
    "conv": convnet,
    "cnn": cnn,
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet32": resnet32,
    "resnet18-third": resnet18_third,
    "resnet18": resnet18,
}

__all__ = [
    "NETS", "cnn", "convnet", "from_equinox", "from_haiku", "from_linen", "from_nnx", "masked",
    "mlp", "resnet8", "resnet14", "resnet18", "resnet18_third", "resnet32", "to_equinox", "to_nnx",
    "transfer",
]  # fmt: skip
