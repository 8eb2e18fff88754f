"""Where pairs come from: data cards, offline packs, the honest split, shards and the mixture."""
