"""The explorer in a real browser: the figures of the cost code, the models of `pick`, a choice in the address."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from conftest import served_by
from mobilenets.architecture import MobileNetSpec
from mobilenets.cli.main import run as cli
from mobilenets.cost import Budget, cost, fit_accuracy, pick
from mobilenets.cost.latency import LatencyProfile
from mobilenets.web.explorer import SIDES, WIDTHS

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# Each size and each scheme once, the other two pairs when there is time.
VIEWS = [
    ("desktop", "light"),
    ("phone", "dark"),
    pytest.param("desktop", "dark", marks=pytest.mark.slow),
    pytest.param("phone", "light", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    page = tmp_path_factory.mktemp("explorer") / "explorer.html"
    assert cli(["explore", "--output", str(page)]) == 0
    return page


@pytest.fixture
def visit(chromium):
    """Opens pages without a network, and looks afterwards that nothing went wrong and nothing was asked for."""
    contexts, problems, asked = [], [], []

    def open_page(address, size="desktop", scheme="light", **options):
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            offline=True,
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert {address.split(":")[0] for address in asked} <= {"file"}


def test_every_figure_is_that_of_the_cost_code(explorer, visit):
    page = visit(explorer.as_uri())
    script = "([w, r]) => { const {rows, ...sums} = costOf(w, r); return {...sums, layers: rows.map(x => [x.mult_adds, x.parameters])}; }"
    pairs = [(width, side) for width in WIDTHS for side in SIDES[::6]]
    for width, side in [*pairs, (0.5, 160), (1.0, 224)]:
        found = page.evaluate(script, [width, side])
        exact = cost(MobileNetSpec(width, side))
        layers = found.pop("layers")
        assert found == {key: getattr(exact, key) for key in found}, (width, side)
        assert layers == [[row.mult_adds, row.parameters] for row in exact.layers]
    assert page.evaluate(script, [0.5, 160])["mult_adds"] == 76_524_800


def test_accuracy_between_the_published_is_that_of_pick(explorer, visit):
    page = visit(explorer.as_uri())
    for precision in ("fp32", "int8"):
        found = page.evaluate(f"top1Of(0.6, 192, '{precision}')")
        exact = fit_accuracy(int8=precision == "int8").top1(MobileNetSpec(0.6, 192))
        assert found == {"value": pytest.approx(exact), "exact": False}
    assert page.evaluate("top1Of(0.5, 160, 'fp32')") == {"value": 59.1, "exact": True}
    assert page.evaluate("top1Of(1.5, 224, 'fp32')") is None


@pytest.mark.parametrize(
    ("address", "budget"),
    [
        ("b=150000000", Budget(max_mult_adds=150e6)),
        ("b=150000000&t=60", Budget(max_mult_adds=150e6, min_top1=60)),
        ("x=bytes&p=int8&b=1500000", Budget(max_bytes=1.5e6, int8=True)),
        ("x=parameters&b=2000000", Budget(max_parameters=2e6)),
    ],
)
def test_the_models_that_are_lit_are_those_of_pick(explorer, visit, address, budget):
    page = visit(f"{explorer.as_uri()}#{address}")
    wanted = [str(candidate.spec) for candidate in pick(budget)]
    assert page.evaluate("fitting().map(one => one.name)") == wanted
    lit = page.eval_on_selector_all(".point.lit", "points => points.map(one => one.dataset.model)")
    assert sorted(lit) == sorted(wanted)
    listed = page.locator("#fits button").all_inner_texts()
    assert listed == wanted
    assert page.locator("#fitting").inner_text().startswith(f"{len(wanted)} of 16 fit")


def test_nothing_fits_and_it_is_said(explorer, visit):
    page = visit(f"{explorer.as_uri()}#b=1000000")
    assert page.locator("#fitting").inner_text().startswith("No published model fits")


@pytest.mark.parametrize(("size", "scheme"), VIEWS)
def test_a_choice_stands_in_the_address(explorer, visit, size, scheme):
    page = visit(explorer.as_uri(), size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert "76,524,800" in page.locator("#tiles").inner_text()
    page.locator("#width").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#side").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#axis").select_option("parameters")
    page.locator("#kernel").focus()
    page.keyboard.press("ArrowRight")
    assert "0.55-152" in page.locator("#tiles").inner_text()
    assert f"{cost(MobileNetSpec(0.55, 152)).mult_adds:,}" in page.locator("#tiles").inner_text()
    assert "~" in page.locator("#tiles").inner_text()
    address = page.url
    assert address.endswith("#x=parameters&w=0.55&r=152&k=5")
    again = visit(address, size, scheme)
    assert again.locator("#tiles").inner_text() == page.locator("#tiles").inner_text()
    assert again.locator("#axis").input_value() == "parameters"
    again.locator(".point").nth(3).focus()
    again.keyboard.press("Enter")
    assert "1.0-128" in again.locator("#tiles").inner_text()


@pytest.mark.parametrize(
    "address", ["w=7&r=9&x=beauty&p=int4&b=-3&t=900&k=2", "=&&&", "b=NaN&w=%3Cb%3E"]
)
def test_a_wrong_address_is_the_start(explorer, visit, address):
    page = visit(f"{explorer.as_uri()}#{address}")
    assert page.evaluate("JSON.stringify(state) === JSON.stringify(BLANK)")


def test_the_separable_convolution_costs_what_the_paper_says(explorer, visit):
    page = visit(f"{explorer.as_uri()}#k=3&m=512&n=512&f=14")
    assert page.locator("#ratio").inner_text().startswith("52,283,392 of 462,422,016 mult-adds")
    assert "0.1131" in page.locator("#ratio").inner_text()
    assert page.locator("#legend").inner_text().count("%") == 4


def test_layers_tell_what_they_cost_when_pointed_at(explorer, visit):
    page = visit(explorer.as_uri())
    page.locator("#layers rect").nth(4).hover()
    assert re.search(r"pointwise.*channels.*mult-adds", page.locator("#layer-told").inner_text())
    page.locator("summary").click()
    assert page.locator("#rows tr").count() == 28


def test_own_runs_and_a_profile_are_on_the_page(digits_run, tmp_path, visit):
    profile = tmp_path / "phone.json"
    measured = LatencyProfile(
        device="a phone",
        runtime="litert",
        threads=1,
        batch=1,
        precision="fp32",
        versions={},
        widths=(0.25, 1.0),
        sides=(128, 224),
        milliseconds=((1.0, 3.0), (4.0, 12.0)),
    )
    profile.write_text(json.dumps(measured.to_dict()))
    page_file = tmp_path / "own.html"
    assert (
        cli(["explore", str(digits_run), "--profile", str(profile), "--output", str(page_file)])
        == 0
    )
    page = visit(f"{page_file.as_uri()}#x=latency_ms&w=1&r=224")
    assert "12.00 ms" in page.locator("#tiles").inner_text()
    assert page.locator(".point").count() == 16
    # A device that was measured with floats tells nothing of integers.
    page.locator("#precision").select_option("int8")
    assert page.locator("#axis").input_value() == "mult_adds"
    (run,) = page.eval_on_selector_all(
        ".point.run", "points => points.map(one => one.getAttribute('aria-label'))"
    )
    assert run.startswith("digits: val top1 ")
    assert page.locator("#fitting").inner_text().startswith("16 of 16 fit")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_from_using_it(explorer, visit, barriers, scheme):
    # axe-core brings its own script into the page.
    page = visit(f"{explorer.as_uri()}#b=150000000", "phone", scheme, bypass_csp=True)
    page.locator("summary").click()
    assert barriers(page) == []


def test_the_page_is_served_to_this_machine_alone_with_its_headers():
    with served_by("explore") as address:
        with urllib.request.urlopen(address) as answer:
            assert b"Choose a MobileNet" in answer.read()
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for wrong in ("etc/passwd", "../pyproject.toml", "%2e%2e/"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(address + wrong)
            assert caught.value.code == 404
            caught.value.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "page.txt"], "the name of a page ends in .html"),
        (["--output", "missing/page.html"], "missing"),
        (["nowhere", "--output", "page.html"], "nowhere is not a run"),
        (["--profile", "nothing.json", "--output", "page.html"], "nothing.json"),
        (["--host", "256.1.1.1"], "can't be had"),
    ],
)
def test_what_can_not_be_shown_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert cli(["explore", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_small_and_brings_torch_into_nothing(explorer):
    assert len(explorer.read_bytes()) < 100_000
    program = (
        "import sys; from mobilenets.cli.main import run; "
        "run(['explore', '--json']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["channels"]["0.5"][0] == 16
