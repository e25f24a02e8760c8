"""From words to one composed config that can be trusted to name things that are there."""
