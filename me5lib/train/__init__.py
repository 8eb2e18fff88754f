"""From pairs to a model: the contrastive step, both stages, negatives, the teacher."""
