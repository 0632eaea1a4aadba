"""Audits of models and files: what the Neural Engine would make of them, and what fp16 does to their numbers."""

from .ane import AneAudit as AneAudit
from .ane import audit_ane as audit_ane
from .fp16 import Fp16Audit as Fp16Audit
from .fp16 import audit_fp16 as audit_fp16
from .package import package_records as package_records
