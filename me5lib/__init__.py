"""me5lib: the library under the Multilingual E5 notebooks.

Rooms, bottom to top; imports run one way only:

    config, io, device, pairs      the ground: settings with their provenance, files, the contracts
    data, model                    where pairs come from; text in, vectors out
    train, instruct                the loss, big batches, many processes, both stages
    evaluate                       the paper's protocol on mteb, baselines, expected against measured
    lessons                        what only notebooks show: runs, exercises, figures, experiments
    cli                            the `me5` command: options only

Nothing heavy is imported here, so that `import me5lib` stays far under half a second.
"""

__version__ = "0.1.0"
