"""What a person looks at: the data of pages, and the templates beside them. No Beam."""
