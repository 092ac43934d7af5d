"""What an adversary with the weights does: look inside, change them, train on."""
