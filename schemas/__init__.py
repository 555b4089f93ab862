"""The nouns: Arrow schemas of everything that is read or written. Read this package first."""
