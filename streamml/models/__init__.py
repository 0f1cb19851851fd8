"""Model bundles and the runtimes that score. Importing this imports no runtime."""

from streamml.models.attribution import Attribution, attribute
from streamml.models.buckets import Buckets
from streamml.models.bundle import Bundle
from streamml.models.callable_model import CallableModel
from streamml.models.compose import Cascade, Ensemble, Postprocess, Preprocess
from streamml.models.convert import to_onnx
from streamml.models.loaded import LoadedModel, open_model
from streamml.models.manifest import Manifest
from streamml.models.onnx_model import OnnxModel
from streamml.models.package import package
from streamml.models.policy import Policy
from streamml.models.registry import Registry
from streamml.models.remote import RemoteModel
from streamml.models.resolve import resolve
from streamml.models.rollout import Guard, History, Rollout, Split
from streamml.models.runtime import ModelRuntime, RuntimeOptions
from streamml.models.signature import TensorSpec
from streamml.models.signing import new_key
from streamml.models.torch_model import TorchExportModel, TorchModuleModel, TorchScriptModel

__all__ = [
    "Attribution",
    "Buckets",
    "Bundle",
    "CallableModel",
    "Cascade",
    "Ensemble",
    "Guard",
    "History",
    "LoadedModel",
    "Manifest",
    "ModelRuntime",
    "OnnxModel",
    "Policy",
    "Postprocess",
    "Preprocess",
    "Registry",
    "RemoteModel",
    "Rollout",
    "RuntimeOptions",
    "Split",
    "TensorSpec",
    "TorchExportModel",
    "TorchModuleModel",
    "TorchScriptModel",
    "attribute",
    "new_key",
    "open_model",
    "package",
    "resolve",
    "to_onnx",
]
