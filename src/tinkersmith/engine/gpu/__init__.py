"""Experimental code for GPUs, which has never run on one: off unless a user asks for it."""
