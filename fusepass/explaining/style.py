"""The style of the page of a report."""

# Colours are told apart by their lightness as well, and rows by the number beside each line.
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #8884;
  --one: #1f77b4; --two: #7fb2d9; --gemm: #2a9d70; --left: #b9bec5; --wash: 14%; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16191d; --one: #3f97d4; --two: #2b5878; --gemm: #2a9d70;
    --left: #565c64; --wash: 26%; }
}
.one { --hue: var(--one); } .two { --hue: var(--two); } .gemm { --hue: var(--gemm); }
.left { --hue: var(--left); }
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 110rem; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, sans-serif; }
h1, h2 { margin: 0; font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; }
.count { margin: .2rem 0; font-size: 1.1rem; }
dl { display: flex; flex-wrap: wrap; gap: 0 .5rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0 1rem 0 0; }
code, pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.picture { margin: 1rem 0; }
.all { display: flex; height: 3rem; border-radius: .4rem; overflow: hidden; }
.all a { flex-basis: 0; min-width: 0; background: var(--hue);
  border-right: 1px solid var(--paper); }
.picture ul { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: .5rem 0; padding: 0;
  list-style: none; }
.key { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border-radius: .2em;
  background: var(--hue); }
.cards { display: grid; gap: .6rem 1.5rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.small { grid-column: 1 / -1; }
.card { padding: .2rem 0 .4rem; min-width: 0; }
.card p, .card pre { margin: .1rem 0 0; } a { color: inherit; }
.bar { height: .5rem; margin-bottom: .25rem; border-radius: .25rem; background: var(--faint); }
.bar span { display: block; height: 100%; border-radius: .25rem; background: var(--hue); }
.badge { display: inline-block; min-width: 1.6em; text-align: center; font-weight: 700; }
summary { cursor: pointer; }
.graph { margin-top: 1.5rem; } .graph > summary { font-weight: 600; font-size: 1.1rem; }
.panes { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; }
ol { list-style: none; margin: .3rem 0; padding: .3rem 0; border: 1px solid var(--faint);
  border-radius: .4rem; }
li { display: flex; flex-wrap: wrap; padding: 0 .4rem; } ol li code { flex: 1; min-width: 0; }
li details { flex: 1; min-width: 0; }
li:target, .card:target { outline: 2px solid; }
.note { flex-basis: 100%; padding-left: 1.9rem; font-style: italic; }
ol li.site, ol li.left { background: color-mix(in srgb, var(--hue) var(--wash), var(--paper)); }
ol li.site { box-shadow: inset .25rem 0 var(--hue); }
"""
