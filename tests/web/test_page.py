"""Page: used as a person would, in a real browser; skipped where there is none."""

import contextlib
import os
import shutil

import pytest
from served import NAMES, png, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; .ci/run installs it: apt-get install chromium"
)
PICTURES = os.environ.get("VPROMPT_PAGE_PICTURES")  # a folder to look at afterwards
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--no-first-run", "--disable-component-update", "--disable-default-apps"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        with contextlib.closing(found):
            yield found


@pytest.fixture(scope="module")
def served(shelf_folder, tiny):
    (shelf_folder / "first.html").write_text("<main><h1>A report</h1></main>")
    with serving([shelf_folder], tiny, page=True) as client:
        yield client


@pytest.fixture
def page(browser, served, request):
    """A fresh page, every mistake of its script an error, nothing fetched from elsewhere."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, bypass_csp=True)
    opened, wrong, foreign = context.new_page(), [], []
    opened.set_default_timeout(60000)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request",
        lambda r: r.url.startswith((served.address, "blob:", "data:")) or foreign.append(r.url),
    )
    opened.goto(served.address)
    opened.wait_for_selector("#first option", state="attached")
    yield opened
    if PICTURES:
        opened.screenshot(path=f"{PICTURES}/{request.node.name[:60]}.png", full_page=True)
    context.close()
    assert not wrong and not foreign


def drop(page, *files):
    """Drag files over the page and let them go, as a hand would."""
    page.evaluate(
        """([files]) => {
            const held = new DataTransfer();
            for (const [name, bytes] of files)
                held.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            for (const kind of ["dragenter", "dragover", "drop"])
                document.getElementById("drop").dispatchEvent(
                    new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: held }));
        }""",
        [[[name, list(data)] for name, data in files]],
    )


def says(page, text):
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(text, timeout=60000)


def test_a_dropped_image_is_labelled(page, served):
    drop(page, ("cat.png", png(3)))
    says(page, "1 image labelled.")
    wanted = served.send(png(3), artifact=["ash"])[1]["results"][0]
    first = page.locator(".answer ol li").first
    assert first.locator("span").first.inner_text() == wanted["label"]
    assert first.locator(".number").inner_text() == f"{100 * wanted['probability']:.1f} %"
    assert page.locator(".answer h3").inner_text() == "ash"
    assert page.locator("#results figcaption").inner_text() == "cat.png"


def test_two_artefacts_are_compared_on_the_same_images(page):
    page.select_option("#second", "cedar")
    drop(page, *((f"{seed}.png", png(seed)) for seed in range(3)))
    says(page, "3 images labelled.")
    assert page.locator(".answer h3").all_inner_texts() == ["ash", "cedar"] * 3
    for row in page.locator("#results > li").all():
        labels = [
            each.inner_text() for each in row.locator("ol li:first-child span:first-child").all()
        ]
        assert (row.locator(".differs").count() == 1) == (labels[0] != labels[1])


def test_a_broken_file_has_a_sentence_beside_it(page):
    drop(page, ("good.png", png(1)), ("bad.png", b"no image"))
    says(page, "1 image labelled, 1 not.")
    bad = page.locator("#results > li").nth(1)
    assert bad.locator(".error").inner_text() == "The file cannot be read as an image."
    page.wait_for_selector(".unseen")  # and not the browser's mark of a broken picture
    assert page.locator("#results img").count() == 1


def test_answers_differ_only_where_both_could_be_given(page):
    cases = {
        "other answers": (("a", ["a", "b"]), ("b", ["a", "b"]), True),
        "one answer": (("a", ["a", "b"]), ("a", ["a", "b"]), False),
        "other classes": (("a", ["a", "b"]), ("c", ["c", "d"]), False),
        "one knows the other's": (("a", ["a", "c"]), ("c", ["c", "d"]), True),
        "a name of every object": (("constructor", ["constructor"]), ("c", ["c"]), False),
    }
    for name, (one, other, differ) in cases.items():
        given = [
            {"label": label, "probabilities": dict.fromkeys(known, 0.5)}
            for label, known in (one, other)
        ]
        assert page.evaluate("([one, other]) => disagree(one, other)", given) == differ, name


def test_a_card_is_shown_without_its_header_for_machines(page):
    card = "---\nlicense: other\ntags:\n- vpt\n---\n\n# A card\n\nwords\n---\nmore"
    page.route("**/card", lambda route: route.fulfill(body=card, content_type="text/plain"))
    page.locator("#pool button").first.click()
    page.wait_for_selector("#card:not([hidden])")
    assert page.locator("#card").inner_text() == card.partition("---\n\n")[2]


def press_until_asked_for_a_file(page):
    """Press Enter, again where a browser on a busy machine no longer takes it for a person's."""
    from playwright.sync_api import TimeoutError as LateError

    for _ in range(3):
        with contextlib.suppress(LateError), page.expect_file_chooser(timeout=15_000) as chooser:
            page.keyboard.press("Enter")
            return chooser.value
    raise AssertionError("no file was asked for")


def test_the_keyboard_alone_is_enough(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(5))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "first"
    page.keyboard.press("ArrowDown")
    assert page.input_value("#first") == "birch"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    chosen = press_until_asked_for_a_file(page)
    chosen.set_files(str(tmp_path / "a.png"))
    says(page, "1 image labelled.")
    assert page.locator(".answer h3").inner_text() == "birch"
    page.keyboard.press("Tab")  # the table, which scrolls
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#card:not([hidden])")
    assert page.locator("#card").inner_text().startswith("# Card 0")


def test_a_narrow_screen_shows_everything(page):
    page.set_viewport_size({"width": 320, "height": 640})
    page.select_option("#second", "birch")
    drop(page, ("a_picture_with_a_very_long_name_that_has_no_spaces_in_it.png", png(1)))
    says(page, "1 image labelled.")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 320


def test_the_pool_and_its_reports_are_there(page):
    rows = page.locator("#pool tr").all_inner_texts()
    assert len(rows) == 3 and all(name in row for name, row in zip(NAMES, rows, strict=True))
    assert "task 0" in rows[0] and "87.5 %" in rows[0]
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="first.html").click()
    opened.value.wait_for_load_state()
    assert opened.value.url.endswith("/reports/first.html")


def test_a_server_that_is_gone_is_said(page):
    page.route("**/predict", lambda route: route.abort())
    drop(page, ("a.png", png(1)))
    says(page, "0 images labelled, 1 not.")
    assert "Is it still running?" in page.locator(".answer .error").inner_text()


def test_a_token_is_asked_for_on_the_page_under_its_own_policy(browser, shelf_folder, tiny):
    with (
        serving([shelf_folder], tiny, page=True, token="secret") as client,
        contextlib.closing(browser.new_page()) as page,
    ):
        page.goto(client.address)
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#first option", state="attached")
        page.set_input_files("#files", {"name": "a", "mimeType": "image/png", "buffer": png(1)})
        says(page, "1 image labelled.")


def test_files_outside_of_the_pool_are_no_reports(served, shelf_folder):
    assert served.json("/reports") == ["first.html"]
    for path in ("../conftest.py", "%2e%2e/secret", "ash/adapter_config.json"):
        assert served.ask("GET", f"/reports/{path}")[0] == 404
    assert served.ask("GET", "/artifacts/oak/card")[0] == 404
    policy = served.ask("GET", "/")[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "sandbox" in str(
        served.ask("GET", "/reports/first.html")[1]["Content-Security-Policy"]
    )
