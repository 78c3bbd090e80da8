"""Losses whose batch is spread over ranks, each from operators on this rank's share of the scores.

A rank computes the scores of all images with its own texts. What belongs to a text is then
complete; what belongs to an image is combined over ranks.
"""
