"""What the charts of a page write at their axes and in their legends."""

import pytest

from mixer.page import runs, write
from tests.page.test_runs import line, write_run

# uPlot draws on a canvas, so what it writes is seen by the calls alone.
LISTEN = """
const fillText = CanvasRenderingContext2D.prototype.fillText;
window.written = [];
window.below = [];
CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
  (this.textAlign === "center" ? below : written).push(text);
  return fillText.call(this, text, ...place);
};
"""


@pytest.fixture
def of_values(browser, tmp_path):
    """Returns a function from values of a metric to its chart's left axis, the legend's last value, and lower axis."""

    def shown(metric, values):
        lines = [line(step, **{metric: value}) for step, value in enumerate(values)]
        (run,) = runs.read([write_run(tmp_path / "run", lines)])
        text = write.page([run], [write.Evaluated()], model=None, no_model="", pictures={"labels": []}, command="c")
        (tmp_path / "page.html").write_text(text)
        page = browser.new_page()
        page.add_init_script(LISTEN)
        page.goto((tmp_path / "page.html").as_uri())
        page.focus(".chart")
        page.keyboard.press("ArrowLeft")
        found = page.evaluate("written"), page.locator(".u-legend .u-value").last.inner_text(), page.evaluate("below")
        page.close()
        return found

    return shown


@pytest.mark.parametrize(
    ("values", "ticks", "last"),
    [
        ([0.0001, 0.0002, 0.0004], {"0.01%", "0.02%", "0.03%", "0.04%"}, "0.040%"),
        ([0.2, 0.6, 0.9], {"20%", "40%", "60%", "80%"}, "90.0%"),
        ([0.981, 0.9825, 0.984], {"98.1%", "98.2%", "98.3%", "98.4%"}, "98.40%"),
        ([0.75, 0.75], {"0%", "20%", "40%", "60%", "80%", "100%"}, "75.0%"),
        ([0.0, 0.0], {"0%", "20%", "40%", "60%", "80%", "100%"}, "0.0%"),
    ],
)
def test_shares_have_the_decimals_that_tell_ticks_apart_and_end_at_100(of_values, values, ticks, last):
    written, legend, _ = of_values("val__accuracy", values)
    shares = [text for text in written if text.endswith("%")]
    assert ticks <= set(shares)
    assert len(shares) == len(set(shares))
    assert max(float(text[:-1]) for text in shares) <= 100
    assert legend == last


def test_losses_close_to_each_other_are_told_apart(of_values):
    written, legend, _ = of_values("val__loss", [1.2341, 1.2343, 1.2345])
    assert {"1.2341", "1.2342", "1.2343", "1.2344", "1.2345"} <= set(written)
    assert legend == "1.2345"


@pytest.mark.parametrize(
    ("number", "ticks"), [(2, ["0", "1"]), (3, ["0", "1", "2"]), (7, ["0", "1", "2", "3", "4", "5", "6"])]
)
def test_there_is_no_tick_between_two_steps_or_blocks(of_values, number, ticks):
    *_, below = of_values("val__loss", [1 / (1 + step) for step in range(number)])
    assert below == ["step", *ticks]
