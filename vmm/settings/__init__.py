"""What was said: settings, checked by their form alone. Imports light and errors."""
