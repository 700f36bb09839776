"""Canvas: figures in few bytes that look the same."""

import re


def cell(left, colour, edge="#fefefe"):
    corners = f"M {left} 0 L {left + 5} 0 L {left + 5} 5 L {left} 5 L {left} 0 "
    return f'<path d="{corners}" clip-path="url(#p1)" style="fill: {colour}; stroke: {edge}"/>\n'


def text(words, size=11):
    style = f"font-size: {size}px; font-family: 'DejaVu Sans', sans-serif; fill: #222222"
    return (
        f'<g id="text_1">\n<text style="{style}" x="1.500000" y="2.123456">{words}</text>\n</g>\n'
    )


def mark(style):
    return f'<use xlink:href="#m" x="1" y="2" style="{style}"/>\n'


def lean(body):
    from vprompt.report.canvas import lean

    return lean(f"<svg>\n<defs>\n<style>*{{}}</style>\n</defs>\n<g>\n{body}</g>\n</svg>\n")


def test_cells_of_one_look_are_one_path_where_the_order_does_not_show():
    made = lean(cell(0, "red") + cell(5, "blue") + cell(10, "red"))
    assert re.findall(r'<path d="([^"]*)"', made) == [
        "M5 0H10V5H5Z",
        "M0 0H5V5H0ZM10 0H15V5H10Z",
    ]
    apart = lean(cell(0, "red", "black") + cell(5, "blue", "white") + cell(10, "red", "black"))
    assert apart.count("<path") == 3  # edges of several colours: what is drawn last stays last


def test_texts_and_marks_of_one_look_say_it_once():
    made = lean(text("one") + text("two") + text("large", 14))
    assert re.findall(r"<text([^>]*)>([^<]*)<", made) == [
        (' x="1.5" y="2.12"', "one"),
        (' x="1.5" y="2.12"', "two"),
        (' x="1.5" y="2.12"', "large"),
    ]
    assert made.count("DejaVu Sans") == 1 and made.count("font-size: 11px") == 1
    assert lean(mark("fill: red") * 3).count("fill: red") == 1
    # A group is see-through as a whole, its members one by one.
    assert lean(mark("opacity: 0.5") * 2).count("opacity: 0.5") == 2
