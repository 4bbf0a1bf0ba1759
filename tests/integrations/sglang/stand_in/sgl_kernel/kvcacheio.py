"""Only there to be imported, by 0.5.11."""

from sgl_kernel import __getattr__ as __getattr__
