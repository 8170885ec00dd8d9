"""What is in a guest's RAM, read from outside: page tables, symbols, frames, dumps."""
