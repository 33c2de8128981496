"""An output in public: what it says of itself, and the one commit that puts it there.

contents      everything a publication consists of
bundle        the output's own files, and what must not be among them
card          the whole README.md: our section and front matter, in a new card or in one that is there
section       our section's text
average       what belay.json says, checked
front_matter  the metadata at the top
hub_rules     the Hub's rules for it
yaml_text     changing a few keys of YAML and leaving the rest as it was written
results       evaluation results, from a file to the table and the model-index
markdown      text that nobody vouches for, made harmless
pictures      the coefficients as a picture
push          the commit
connection    the Hub through its own client
"""

from belay_cli.publish.card import card
from belay_cli.publish.front_matter import front_matter
from belay_cli.publish.pictures import coefficients_png, draw_coefficients, have_matplotlib
from belay_cli.publish.results import read_eval_results

__all__ = ["card", "coefficients_png", "draw_coefficients", "front_matter", "have_matplotlib", "read_eval_results"]
