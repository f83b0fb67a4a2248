"""What keeps the series going: running and testing all of it, and its cell for Google Colab."""
