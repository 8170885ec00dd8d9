# Contracts of the native modules; see each .pxd.
