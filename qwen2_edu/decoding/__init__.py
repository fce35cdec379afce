"""What generation stands on: settings, beam search, text as it comes."""
