"""An output in public: what it says of itself, and the one commit that puts it there.

publication   one publication, from the first look to the commit
destination   where on the Hub it goes
contents      everything a publication consists of
bundle        the output's own files, and what must not be among them
card          the whole README.md: our section and front matter, in a new card or in one that is there
section       our section's text
front_matter  the metadata at the top
hub_rules     the Hub's rules for it
yaml_text     changing a few keys of YAML and leaving the rest as it was written
results       evaluation results, from a file to the table and the model-index
push          the commit
connection    the Hub through its own client
"""
