"""What a proposal is trained on: point sampling, mask and projection terms, matching, criterion."""
