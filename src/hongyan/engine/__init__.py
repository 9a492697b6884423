"""Admit, commit, sequence, deliver: the rules of conversations, without sockets."""
