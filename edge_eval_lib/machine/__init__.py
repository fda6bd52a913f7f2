"""What this machine is, what is declared in params/hardware.yaml, NVML, and the page cache."""
