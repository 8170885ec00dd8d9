"""What an x86 vCPU looks like at boot: CPUID, MSRs, LAPIC, registers. Pure functions."""
