"""The nouns: Arrow schemas of what is read and written. Read this package first."""
