"""From tokens to an answer: what is evaluated next, which token is chosen, what text it makes."""
