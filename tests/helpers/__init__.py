"""What tests share: files and models to test with, and programs in processes of their own."""
