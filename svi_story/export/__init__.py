"""A finished film for other programs: a timeline for editors with media files, or its captions."""
