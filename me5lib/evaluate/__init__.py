"""The paper's protocol on mteb, baselines that need no learning, expected against measured."""
