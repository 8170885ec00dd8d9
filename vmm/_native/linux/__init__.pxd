# Kernel headers, extern only: no logic, no runtime module.
