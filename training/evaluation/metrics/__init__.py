"""Metrics of clips, one file each: of any video, and of drawn worlds by the tracker."""
