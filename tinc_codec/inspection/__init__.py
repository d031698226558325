"""What the headers of stored chunks say about an array, without decoding anything."""
