"""Does it help? The paper's evaluation (sections 4.1 to 4.5), with what made the authors' own unfair set right: every
arm gets the same prompts, suffix, seeds, number of images, guidance and steps, means are over all images, and no
difference is told without its interval.

    prompt_sets ─► protocol (what to draw) ─► drawing (resumable) ─► ledger (Postgres + folder)
    features ─► metrics (pure) ─► results (per arm, with intervals) ─► figures, report
"""
