"""From a method's bare term to what is added to the loss: when it acts, how strongly, and the guards."""
