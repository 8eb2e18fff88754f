"""me5lib: the library under the Multilingual E5 notebooks.

Rooms, bottom to top; imports run one way only:

    places, scale, pairs, lesson   the ground: folders, every dial, the two contracts, notebook helpers
    data, model                    where pairs come from; text in, vectors out
    train                          the loss, big batches, many processes, both stages
    evaluate                       the paper's protocol on mteb, baselines, expected against measured
    show                           figures and maps of what the others return
    experiments, run, cli          papermill runs, report pages, the `me5` command

Nothing heavy is imported here, so that `import me5lib` stays far under half a second.
"""

__version__ = "0.1.0"
