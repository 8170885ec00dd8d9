"""VFIO and iommufd by their ioctls."""
