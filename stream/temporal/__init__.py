"""What keeps a stream consistent with itself; each part is off or on by itself."""
