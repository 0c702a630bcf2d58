"""Where on Earth a photo was taken, as a choice between cells that hold about as many photos each."""

from mobilenets.tasks.geolocation.earth import distance_km, shares_within

__all__ = ["distance_km", "shares_within"]
