"""Whether the KVM of this machine can run unmodified kernels: decides host or lab."""

from vmm.check.probe import can_run_kernels

__all__ = ["can_run_kernels"]
