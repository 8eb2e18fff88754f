"""How fast the atlas's page is: 60 meanings in 108 languages, two models, headless Chromium that renders in software.

    python -m tests.benchmarks.atlas_page [PAGE.html]     # or a page of `me5 atlas --out`

Prints the page's size, the time to the first frame with all points, from a move of the pointer to the frame that shows
the text under it (median and worst of 100 points), and frames per second while one map turns into another.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HOVER = """async seed => { const shown = [...visible.keys()].filter(i => visible[i]), times = [];
    for (let n = 0; n < 100; n++) {
        const text = shown[(seed + 7919 * n) % shown.length], { left, top } = $('map').getBoundingClientRect();
        const start = performance.now(), at = { clientX: left + across(text), clientY: top + down(text) };
        $('map').dispatchEvent(new PointerEvent('pointermove', at));
        await new Promise(requestAnimationFrame);
        await new Promise(done => setTimeout(done));  // after the frame
        if ($('tip').hidden) throw new Error(`no text is shown at ${text}`);
        times.push(performance.now() - start);
    }
    return times }"""
MORPH = """async () => { let frames = 0; const start = performance.now();
    $('method').selectedIndex = 1 - $('method').selectedIndex; showMap();
    while (morph) { await new Promise(requestAnimationFrame); frames += 1; }
    return 1000 * frames / (performance.now() - start) }"""


def synthetic_page(file: Path) -> None:
    """Write a page of 6,480 texts of 30 words."""
    from me5lib.evaluate.paper import languages
    from me5lib.evaluate.stats import Interval
    from me5lib.lessons import atlas

    rng, codes = np.random.default_rng(0), sorted(languages()["short"])[:108]
    spaces = {name: rng.normal(size=(1, 60, 64)) + rng.normal(size=(108, 60, 64)) for name in ("first", "second")}
    words = [f"wörter{i}" for i in range(3000)]
    texts = {code: [" ".join(rng.choice(words, 30)) for _ in range(60)] for code in codes}
    maps = [atlas.Map(name, method, removed, rng.normal(size=(108, 60, 2)), *[Interval(0.5, 0.4, 0.6)] * 5)
            for name in spaces for method in atlas.METHODS for removed in (False, True)]
    file.write_text(atlas.explorer(spaces["first"], texts, maps).html, encoding="utf8")


def main() -> None:
    """Measure, three times each."""
    from playwright.sync_api import sync_playwright

    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "atlas.html"
    if len(sys.argv) < 2:
        synthetic_page(file)
    print(f"page: {file.stat().st_size / 1e6:.2f} MB")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for _ in range(3):
            page, start = browser.new_page(offline=True, viewport={"width": 1280, "height": 860}), time.perf_counter()
            page.goto(file.resolve().as_uri(), wait_until="commit")
            page.wait_for_function("() => typeof visible === 'object' && !asked", polling="raf")
            first = time.perf_counter() - start
            page.wait_for_function("!morph")
            hover = page.evaluate(HOVER, 1)
            frames = [page.evaluate(MORPH) for _ in range(3)]
            print(f"first frame {first:.2f} s, hover {statistics.median(hover):.0f} ms (worst {max(hover):.0f}), "
                  f"morph {', '.join(f'{rate:.0f}' for rate in frames)} frames/s")


if __name__ == "__main__":
    main()
