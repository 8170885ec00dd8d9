"""The verb `check`: what a start would lack here. Imports run, host and what is below them."""
