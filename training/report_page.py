"""The page of a report: its template and its style, in one file and without any address."""

STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --muted: #6b7480; --grid: #dfe3e8;
  --main: #1f5fbf; --second: #c2701c; --event: #d9a400; --alarm: #c22f3d; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1d2127; --ink: #e6e9ed; --muted: #97a1ad; --grid: #333a43;
  --main: #7db1ff; --second: #f0a45c; --event: #e6c04a; --alarm: #ff7b84; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 84rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 62rem; }
.note { color: var(--muted); font-size: .87rem; }
.scroll { overflow-x: auto; border: 1px solid var(--grid); border-radius: 6px; }
.fits { width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { padding: .22rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--card); vertical-align: bottom; }
.wide thead th { white-space: normal; min-width: 5.2rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 500; }
td.random { color: var(--muted); }
tr.section > * { border-top: 2px solid var(--muted); }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
.plots.long { grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
figure { margin: 0; padding: .7rem; background: var(--card); border-radius: 6px; }
figcaption { font-size: .87rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
@media (max-width: 40rem) {
  th, td { padding: .22rem .45rem; }
  th:first-child { white-space: normal; min-width: 7rem; max-width: 9rem; overflow-wrap: break-word; } }
.key { display: inline-block; width: .9em; height: .9em; vertical-align: -.1em; border-radius: 2px; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Scores against labels</title>
<style>{{ style }}</style>
</head>
<body>
<h1>Scores against labels</h1>
<p class="note">{{ caption }}.</p>

{% macro beside_random(table) %}
<div class="scroll fits"><table>
<thead><tr>{% for header in table.headers %}<th scope="col">{{ header }}</th>{% endfor %}</tr></thead>
<tbody>
{% for section in table.sections %}{% set later = not loop.first %}{% for label, cells in section %}
<tr{% if later and loop.first %} class="section"{% endif %}><th scope="row">{{ label }}</th>
{% for cell in cells %}<td{% if loop.index is even %} class="random"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}
</tbody></table></div>
{% endmacro %}

{% macro plots(figures, long) %}
<div class="plots{% if long %} long{% endif %}">
{% for figure in figures %}<figure><figcaption>{{ figure.caption }}</figcaption>{{ figure.svg }}</figure>
{% endfor %}</div>
{% endmacro %}

{{ beside_random(headline) }}
<p class="note">Figures of the best threshold have seen the labels: they are upper bounds. Point-adjusted figures
flatter any score, as the random one beside them shows.</p>

{% if blamed %}
<h2>Blamed channels</h2>
<p class="note">Mean over {{ blamed.entities }} entities: which share of the guilty channels is among the most deviating
ones (hit rate), weighed by place (NDCG).</p>
{{ beside_random(blamed) }}
{% endif %}

{% if curves %}
<h2>Curves</h2>
{{ plots(curves, false) }}
{% endif %}
<p class="note">{{ p_values }}.</p>

{% for part in excerpts %}
<h2>{{ part.title }}</h2>
{% if part.figures %}
<p class="note">The longest {{ part.figures | length }} of {{ part.total }}. <span class="key" style="background:
var(--event); opacity: .35"></span> labelled rows, <span class="key" style="background: var(--alarm)"></span> flagged
rows.</p>
{{ plots(part.figures, true) }}
{% else %}<p>None.</p>{% endif %}
{% endfor %}

<h2>Entities</h2>
<div class="scroll"><table class="wide">
<thead><tr>{% for header in entities.headers %}<th scope="col">{{ header }}</th>{% endfor %}</tr></thead>
<tbody>
{% for label, cells in entities.rows %}<tr><th scope="row">{{ label }}</th>
{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
</body>
</html>
"""
