"""How a page looks: light or dark as the reader's system is, from 500 pixels up, and on paper.

Figures and tables stand beside each other where there is room. A table that is wider than its
place scrolls there: its first column stays, and an edge that hides more is shaded. A browser that
cannot tie the shade to scrolling shades the place's background.
"""

from __future__ import annotations

import re

__all__ = ["BACK", "STYLE", "scrolling"]

BACK = "#14171a"  # of a dark page and its figures

STYLE = f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #505050; --line: #ddd;
  --card: #f5f5f3; --link: #00507d; --mark: #d55e00; --shade: rgb(0 0 0 / .22); --gap: 2.5rem; }}
@media (max-width: 700px) {{ :root {{ --gap: 0rem; }} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --paper: {BACK}; --ink: #e6e6e3;
  --soft: #a8acb0; --line: #3a3f45; --card: #1e2227; --link: #7fc4f2; --mark: #ff9148;
  --shade: rgb(0 0 0 / .85); }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 Georgia, 'Times New Roman', serif; color: var(--ink);
  background: var(--paper); max-width: 102rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2, h3, table, figcaption, nav, summary, .notice, .small, .tiles, .lead {{
  font-family: system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin-bottom: .4rem; }}
h2 {{ font-size: 1.3rem; margin-top: 3rem; border-top: 2px solid var(--ink); padding-top: .6rem; }}
h3 {{ font-size: 1.05rem; margin: 2rem 0 .4rem; clear: both; }}
h1, h2, h3, p, li, nav {{ overflow-wrap: anywhere; }}
p, pre, ul, .notice {{ max-width: 50rem; }}
.lead {{ color: var(--soft); font-size: .92rem; margin: .3rem 0; }}
.tiles {{ display: grid; gap: .7rem; margin: 1rem 0; max-width: 62rem; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); }}
.tiles div {{ background: var(--card); border-radius: .4rem; padding: .6rem .8rem; }}
.tiles dt {{ font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }}
.tiles dd {{ margin: 0; font-size: .8rem; color: var(--soft); }}
.tiles .value {{ font-size: 1.7rem; overflow-wrap: anywhere; line-height: 1.25; color: var(--ink);
  font-variant-numeric: tabular-nums; }}
.scroll {{ display: inline-flex; max-width: 100%; overflow-x: auto; vertical-align: top;
  margin: .9rem var(--gap) .9rem 0; background:
  linear-gradient(to right, var(--paper) 30%, transparent) left / 2.5rem 100% local no-repeat,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 2.5rem 100% local no-repeat,
  linear-gradient(to right, var(--shade), transparent) left / .8rem 100% scroll no-repeat,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% scroll no-repeat; }}
.scroll:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
.scroll::after {{ content: ""; position: sticky; right: 0; flex: none; width: .9rem;
  margin-left: -.9rem; opacity: 0; pointer-events: none;
  background: linear-gradient(to left, var(--shade), transparent); }}
@supports (animation-timeline: scroll(x)) {{
  .scroll::after {{ animation: shade linear both; animation-timeline: scroll(nearest x); }} }}
@keyframes shade {{ 0%, 92% {{ opacity: 1; }} 100% {{ opacity: 0; }} }}
table {{ border-collapse: collapse; font-size: .82rem; line-height: 1.35; flex: none;
  max-width: max(100%, min(60rem, 100vw - 2rem - var(--gap)));
  min-width: min(22rem, 100vw - 2rem - var(--gap)); }}
caption {{ text-align: left; font-weight: 600; padding-bottom: .4rem; }}
caption span {{ position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2rem); }}
th, td {{ text-align: left; vertical-align: top; padding: .22rem .9rem .22rem 0; }}
thead th {{ border-bottom: 1.5px solid var(--ink); }}
tbody tr {{ border-bottom: 1px solid var(--line); }}
tbody th {{ font-weight: 400; min-width: 9.5rem; max-width: 19rem; overflow-wrap: anywhere; }}
th:first-child {{ position: sticky; left: 0; background: var(--paper); }}
td {{ max-width: 34rem; min-width: 6rem; overflow-wrap: anywhere; }}
.number {{ min-width: 0; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }}
figure {{ display: inline-block; vertical-align: top; max-width: 100%;
  margin: .9rem var(--gap) .9rem 0; }}
@media screen and (min-width: 1100px) and (max-width: 1650px) {{
  figure {{ max-width: calc(50vw - 4rem); }} }}
figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ width: 0; min-width: 100%; }}
figcaption, .small {{ font-size: .82rem; color: var(--soft); }}
.notice {{ border-left: 4px solid var(--mark); padding: .3rem .8rem; font-size: .9rem;
  margin: 1rem 0; }}
pre {{ font-size: .75rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); padding: .6rem; }}
a {{ color: var(--link); }} nav ul {{ padding-left: 1.2rem; font-size: .9rem; }}
details {{ margin: 1rem 0; }} summary {{ cursor: pointer; }}
@media print {{ body {{ max-width: none; margin: 0; font-size: 10.5pt; }} a {{ color: inherit; }}
  h1, h2, h3, caption {{ break-after: avoid; }} figure, tr, .notice {{ break-inside: avoid; }}
  .scroll {{ overflow: visible; background: none; }} nav, .scroll::after {{ display: none; }} }}
"""

_TABLE = re.compile(r"<table([^>]*)><caption>(.*?)</caption>", re.DOTALL)


def scrolling(html: str) -> str:
    """Each table in a place of its own that scrolls, by keys too, and is named by its caption."""
    opened = (
        r'<div class="scroll" role="region" tabindex="0" aria-label="\2">'
        r"<table\1><caption><span>\2</span></caption>"
    )
    return _TABLE.sub(opened, html).replace("</table>", "</table></div>")
