"""Model bundles and the runtimes that score. Importing this imports no runtime."""

from streamml.models.bundle import Bundle
from streamml.models.loaded import LoadedModel, open_model
from streamml.models.manifest import Manifest
from streamml.models.onnx_model import OnnxModel
from streamml.models.resolve import resolve
from streamml.models.runtime import ModelRuntime
from streamml.models.signature import TensorSpec

__all__ = ["Bundle", "LoadedModel", "Manifest", "ModelRuntime", "OnnxModel", "TensorSpec", "open_model", "resolve"]
